// On paper, a table with all rows stands in a grid's place: the grid itself draws those in view alone, and draws the
// others too late for the printer. Figures are as wide as the paper, which is white: the dark theme rests meanwhile.
(function () {
  const PAPER = 600; // pixels of a card on A4
  const LARGEST = 9, LETTERS = 130; // pixels of a table's letters, and what all columns of a row have room for
  const root = document.documentElement;
  let scheme = null;

  const write = (value) => {
    if (value == null) return "–";
    if (typeof value === "object") return value.text;
    return typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : String(value);
  };

  const lay = (grid) => {
    const owner = grid.closest("[id]"), table = document.createElement("table");
    let api;
    try { api = window.dash_ag_grid.getApi(owner.id); } catch (error) { return; } // it is not there yet
    const columns = api.getAllDisplayedColumns().filter((column) => column.getColDef().headerName);
    const shown = (rowNode, colKey) =>
      write(api.getCellValue({ rowNode, colKey, useFormatter: Boolean(colKey.getColDef().valueFormatter) }));
    const add = (row, tag, text) => {
      const cell = document.createElement(tag);
      cell.textContent = text;
      return row.appendChild(cell);
    };
    const head = table.createTHead().insertRow(), body = table.createTBody();
    columns.forEach((column) => add(head, "th", column.getColDef().headerName));
    api.forEachNodeAfterFilterAndSort((rowNode) => {
      const row = body.insertRow();
      if (rowNode.data.heading != null) add(row, "th", rowNode.data.heading).colSpan = columns.length;
      else columns.forEach((column) => add(row, "td", shown(rowNode, column)));
    });
    table.className = "printed";
    table.style.fontSize = Math.min(LARGEST, LETTERS / columns.length) + "px";
    owner.classList.add("on-screen");
    owner.after(table);
  };

  window.addEventListener("beforeprint", () => {
    scheme = scheme || root.getAttribute("data-mantine-color-scheme");
    root.setAttribute("data-mantine-color-scheme", "light");
    document.querySelectorAll(".ag-root-wrapper").forEach(lay);
    document.querySelectorAll(".figure").forEach((figure) => {
      figure.style.setProperty("--on-paper", Math.min(1, PAPER / figure.clientWidth));
    });
  });
  window.addEventListener("afterprint", () => {
    root.setAttribute("data-mantine-color-scheme", scheme);
    scheme = null;
    document.querySelectorAll("table.printed").forEach((table) => table.remove());
    document.querySelectorAll(".on-screen").forEach((owner) => owner.classList.remove("on-screen"));
  });
})();
