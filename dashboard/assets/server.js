// Says when the dashboard itself does not respond, by the dot that says how the store is: a page of a stopped server
// looks alive otherwise. Until it responds again links do nothing, where they would change the address alone.
(function () {
  const SECONDS_BETWEEN = 3, SECONDS_TO_ANSWER = 5;
  const root = document.documentElement;
  const isAway = () => root.dataset.server === "away";
  const missed = new Map(); // what callbacks were to be told while no server was there, by id and property

  const named = (input) => {
    const { id } = input;
    const name = typeof id === "string" ? id : JSON.stringify(Object.fromEntries(Object.entries(id).sort()));
    return name + "." + input.property;
  };

  // Remembers what a callback was to be told that has found no server; the tick comes again by itself.
  const remember = (body) => {
    const { inputs, changedPropIds } = JSON.parse(body);
    const given = inputs.flat();
    const changed = given.filter((input) => changedPropIds.includes(named(input)));
    for (const input of changed.length ? changed : given.slice(0, 1))
      if (named(input) !== "shell-tick.n_intervals") missed.set(named(input), input);
  };

  // Tells all of it again. The page stays as it is: loaded anew, it would lose uploads and selections.
  const tellAgain = () => {
    const told = [...missed.values()];
    missed.clear();
    for (const { id, property, value } of told) window.dash_clientside.set_props(id, { [property]: value });
  };

  const ask = window.fetch;
  window.fetch = function (address, settings) {
    const answer = ask.apply(this, arguments);
    answer.catch(() => String(address).includes("_dash-update-component") && remember(settings.body));
    return answer;
  };

  const check = async () => {
    try {
      await ask("/alive", { cache: "no-store", signal: AbortSignal.timeout(SECONDS_TO_ANSWER * 1000) });
      delete root.dataset.server;
      tellAgain();
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
