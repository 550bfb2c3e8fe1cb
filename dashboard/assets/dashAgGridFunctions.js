// Functions that grids name in their options.
var dagfuncs = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});

// However a grid is sorted, rows stay in their band, behind its heading: runs of two test sets are never ranked together.
dagfuncs.keepBands = function (params) {
  params.nodes
    .map((node, place) => ({ node, place }))
    .sort((a, b) => {
      const one = a.node.data, other = b.node.data;
      return one.band - other.band || Boolean(other.heading) - Boolean(one.heading) || a.place - b.place;
    })
    .forEach((entry, place) => { params.nodes[place] = entry.node; });
  return params.nodes;
};

// The tab key leaves a grid instead of walking through its cells.
dagfuncs.leaveGrid = () => false;

// Enter follows the link of the focused cell or, without one, that of its row.
dagfuncs.followLink = function (params) {
  if (!params.event || params.event.key !== "Enter") return;
  const cell = params.event.target.closest(".ag-cell"), grid = params.event.target.closest(".ag-root-wrapper");
  const row = cell && grid.querySelectorAll(`[row-index="${cell.closest("[row-index]").getAttribute("row-index")}"] a.cell-link`);
  const link = cell && (cell.querySelector("a.cell-link") || row[0]);
  if (link) link.click();
};
