// Says when the dashboard itself does not respond, by the dot that says how the store is: a page of a stopped server
// looks alive otherwise. Until it responds again links do nothing, where they would change the address alone.
(function () {
  const SECONDS_BETWEEN = 3, SECONDS_TO_ANSWER = 5;
  const root = document.documentElement;
  const isAway = () => root.dataset.server === "away";
  let missed = false; // whether a callback other than the store's tick found no server: the page is not what it says

  const ask = window.fetch;
  window.fetch = function (address, settings) {
    const answer = ask.apply(this, arguments);
    answer.catch(() => {
      const body = String((settings && settings.body) || "");
      if (String(address).includes("_dash-update-component") && !body.includes("shell-tick.n_intervals")) missed = true;
    });
    return answer;
  };

  const check = async () => {
    try {
      await ask("/alive", { cache: "no-store", signal: AbortSignal.timeout(SECONDS_TO_ANSWER * 1000) });
      if (isAway() && missed) window.location.reload();
      delete root.dataset.server;
    } catch (error) {
      root.dataset.server = "away";
    }
    setTimeout(check, SECONDS_BETWEEN * 1000);
  };
  setTimeout(check, SECONDS_BETWEEN * 1000);

  document.addEventListener("click", (event) => {
    const link = isAway() && event.target.closest && event.target.closest("a[href^='/']");
    if (!link) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
})();
