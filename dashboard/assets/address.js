// Keeps a page's controls in its address without asking the server or adding to the history.
(function () {
  const write = (changes) => {
    const wanted = new URLSearchParams(window.location.search);
    for (const [name, text] of Object.entries(changes)) text ? wanted.set(name, text) : wanted.delete(name);
    const text = wanted.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
    window.history.replaceState(window.history.state, "", window.location.pathname + (text ? "?" + text : ""));
  };
  // defaults (nothing, off, 0) and uploads, which exist only here, are left out of the address
  const plain = (value) => (Array.isArray(value) ? value.join(",") : String(value || "").replace(/^upload:.*/, ""));

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    address: {
      keep: function () {
        const inputs = window.dash_clientside.callback_context.inputs_list.flat();
        write(Object.fromEntries(inputs.map((input) => [input.id.split("-").slice(1).join("-"), plain(input.value)])));
      },

      // a slider at its end follows the run, so the address leaves it out
      keepEpoch: (epoch, last) => write({ epoch: epoch < last ? String(epoch) : "" }),

      // how a grid is sorted ("latency:desc"; its default order is left out) and filtered (AG Grid's model as JSON)
      keepGrid: (columns, filters) => {
        const changes = {};
        const sorted = (columns || []).filter((each) => each.sort).sort((a, b) => a.sortIndex - b.sortIndex);
        const sort = sorted.map((each) => each.colId + ":" + each.sort).join(",");
        if (columns) changes.sort = sort === "score:desc" ? "" : sort;
        if (filters) changes.filter = Object.keys(filters).length ? JSON.stringify(filters) : "";
        write(changes);
      },
    },
  });
})();
