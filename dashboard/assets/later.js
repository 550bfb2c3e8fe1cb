// What a page requests only after its first rows are on the screen.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  later: {
    // true once the grid is there and the browser is idle
    whenRendered: (columns, rendered) => {
      if (!columns || rendered) return window.dash_clientside.no_update;
      const idle = window.requestIdleCallback || ((act) => setTimeout(act, 300));
      return new Promise((resolve) => idle(() => resolve(true), { timeout: 1500 }));
    },
  },
});
