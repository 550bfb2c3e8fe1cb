// AG Grid is half of all scripts, so it is asked for by the first grid on a page. Until it is here, a grid's first rows
// stand in a plain table in its place.
(function () {
  const address = document.querySelector("meta[name=grid-script]").content;
  const SECONDS_BETWEEN = 3, FIRST_ROWS = 20;
  let grid = null, coming = null;

  const ask = (done) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = done;
    script.onerror = () => setTimeout(ask, SECONDS_BETWEEN * 1000, done); // the server may be starting again
    document.body.appendChild(script);
  };
  const load = () => (coming = coming || new Promise(ask).then(() => {
    grid = window.dash_ag_grid.AgGrid;
    window.dash_ag_grid = Object.assign({}, window.dash_ag_grid, { AgGrid: Grid });
    return grid;
  }));

  const Grid = (props) => {
    const [Loaded, use] = window.React.useState(() => grid);
    window.React.useEffect(() => { if (!Loaded) load().then((loaded) => use(() => loaded)); }, []);
    return window.React.createElement(Loaded || FirstRows, props);
  };
  Grid.dashRenderType = true; // as the real one's

  const FirstRows = ({ id, className, style, columnDefs, rowData, dashGridOptions }) => {
    const make = window.React.createElement, cells = window.dashAgGridComponentFunctions;
    const columns = (columnDefs || []).filter((column) => !column.initialHide);
    const width = (column) => column.width || column.minWidth;
    const cell = (column, data) => {
      const value = column.valueFormatter ? "" : data[column.field], render = cells[column.cellRenderer];
      return make("td", { key: column.field }, render ? make(render, { ...column.cellRendererParams, value, data }) : value);
    };
    const row = (data, place) => make("tr", { key: place, style: { height: dashGridOptions.rowHeight } },
      data.heading == null
        ? columns.map((column) => cell(column, data))
        : make("td", { colSpan: columns.length }, make(cells.BandHeading, { data })));
    return make("div", { id, className: "first-rows " + (className || ""), style },
      make("table", { style: { width: columns.reduce((sum, column) => sum + width(column), 0) } },
        make("thead", null, make("tr", { style: { height: dashGridOptions.headerHeight } },
          columns.map((column) => make("th", { key: column.field, scope: "col", style: { width: width(column) } }, column.headerName)))),
        make("tbody", null, (rowData || []).slice(0, FIRST_ROWS).map(row))));
  };

  window.dash_ag_grid = { AgGrid: Grid, getApiAsync: (id) => load().then(() => window.dash_ag_grid.getApiAsync(id)) };
})();
