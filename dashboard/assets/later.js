// What a page asks for only when its first rows stand on the screen.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  later: {
    // true once the grid is there and the browser has nothing better to do
    whenDrawn: (columns, drawn) => {
      if (!columns || drawn) return window.dash_clientside.no_update;
      const idle = window.requestIdleCallback || ((act) => setTimeout(act, 300));
      return new Promise((resolve) => idle(() => resolve(true), { timeout: 1500 }));
    },
  },
});
