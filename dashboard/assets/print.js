// On paper, grids show all of their rows: on the screen they hold those in view alone.
(function () {
  const lay = (how) => document.querySelectorAll(".ag-root-wrapper").forEach((grid) => {
    const owner = grid.closest("[id]");
    if (!owner || !window.dash_ag_grid) return;
    window.dash_ag_grid.getApiAsync(owner.id).then((api) => api.setGridOption("domLayout", how)).catch(() => {});
  });
  window.addEventListener("beforeprint", () => lay("print"));
  window.addEventListener("afterprint", () => lay("normal"));
})();
