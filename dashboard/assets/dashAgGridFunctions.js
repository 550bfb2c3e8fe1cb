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
