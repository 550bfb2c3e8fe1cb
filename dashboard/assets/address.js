// Keeps a page's controls in its address without asking the server or adding to the history.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  address: {
    keep: function () {
      const wanted = new URLSearchParams(window.location.search);
      for (const input of window.dash_clientside.callback_context.inputs_list.flat()) {
        const name = input.id.split("-").slice(1).join("-");
        const value = input.value;
        const empty = value === undefined || value === null || value === "" || value === false || (Array.isArray(value) && !value.length);
        if (empty) wanted.delete(name);
        else wanted.set(name, Array.isArray(value) ? value.join(",") : String(value));
      }
      const text = wanted.toString().replaceAll("%2C", ",");
      window.history.replaceState(window.history.state, "", window.location.pathname + (text ? "?" + text : ""));
      return window.dash_clientside.no_update;
    },
  },
});
