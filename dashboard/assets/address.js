// Keeps a page's controls in its address without asking the server or adding to the history.
(function () {
  const write = (changes) => {
    const wanted = new URLSearchParams(window.location.search);
    for (const [name, text] of Object.entries(changes)) text ? wanted.set(name, text) : wanted.delete(name);
    const text = wanted.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
    window.history.replaceState(window.history.state, "", window.location.pathname + (text ? "?" + text : ""));
  };
  // defaults (nothing, off, 0) are left out of the address
  const plain = (value) => (Array.isArray(value) ? value.join(",") : String(value || ""));

  // The title of the page at a path, whenever Dash sets its own.
  let titled = null;
  const entitle = () => {
    const here = titled && titled.path === window.location.pathname;
    if (here && document.title !== titled.text) document.title = titled.text;
  };
  new MutationObserver(entitle).observe(document.head, { childList: true, characterData: true, subtree: true });

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    address: {
      keep: function () {
        const inputs = window.dash_clientside.callback_context.inputs_list.flat();
        write(Object.fromEntries(inputs.map((input) => [input.id.split("-").slice(1).join("-"), plain(input.value)])));
      },

      // a slider at its end follows the run, so the address leaves it out
      keepEpoch: (epoch, last) => write({ epoch: epoch < last ? String(epoch) : "" }),

      // how a grid is sorted ("latency:desc"; its default order is left out), filtered (AG Grid's model as JSON), and
      // what is selected in it. A search or filter takes the headings away: the test set is a column then.
      keepGrid: (columns, filters, selected, find) => {
        const changes = {};
        const sorted = (columns || []).filter((each) => each.sort).sort((a, b) => a.sortIndex - b.sortIndex);
        const sort = sorted.map((each) => each.colId + ":" + each.sort).join(",");
        if (columns) changes.sort = sort === "score:desc" ? "" : sort;
        if (filters) changes.filter = Object.keys(filters).length ? JSON.stringify(filters) : "";
        if (Array.isArray(selected)) changes.selected = selected.map((row) => row.run_id).filter((id) => id && !id.startsWith("band-")).join(",");
        write(changes);
        const isPart = Boolean(find) || Object.keys(filters || {}).length > 0;
        window.dash_ag_grid.getApiAsync("leaderboard-grid").then((api) => api.setColumnsVisible(["test_set"], isPart));
      },

      // Dash knows no title that depends on the address
      title: (text) => {
        titled = text && { text, path: window.location.pathname };
        entitle();
        return window.dash_clientside.no_update;
      },
    },
  });
})();
