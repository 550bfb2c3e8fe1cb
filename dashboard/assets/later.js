// What a page requests only after its first rows are on the screen.
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  later: {
    // true once the grid is there and the browser is idle
    whenRendered: (columns, rendered) => {
      if (!columns || rendered) return window.dash_clientside.no_update;
      if (window.innerWidth < 640) fitPhone();
      const idle = window.requestIdleCallback || ((act) => setTimeout(act, 300));
      return new Promise((resolve) => idle(() => resolve(true), { timeout: 1500 }));
    },
  },
});

// On a phone, name and score stand side by side on the screen, and names scroll with the rest.
const fitPhone = () => {
  const state = [{ colId: "rank", width: 70 }, { colId: "name", width: 118 }, { colId: "score", width: 108 }];
  window.dash_ag_grid.getApiAsync("leaderboard-grid").then((api) => api.applyColumnState({ state }));
};
