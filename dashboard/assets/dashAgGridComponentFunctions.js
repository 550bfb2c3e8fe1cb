// Cells of the grids. React escapes every text, so names from the store are never HTML.
var dagcomponentfuncs = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
const make = (...parts) => window.React.createElement(...parts);

// Follows a link of this site without reloading the page, as dcc.Link does.
const follow = (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  window.history.pushState({}, "", event.currentTarget.getAttribute("href"));
  window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
  window.scrollTo(0, 0);
};

const heatColour = (value) => {
  const share = Math.max(0, Math.min(1, value));
  return `color-mix(in oklab, #0072B2 ${Math.round(share * share * 55)}%, var(--surface))`; // the text stays readable on all of them
};

dagcomponentfuncs.BandHeading = function (props) {
  const { heading, count, leaks } = props.data;
  return make("div", { className: "band" + (leaks ? " leaking" : ""), role: "gridcell" },
    make("span", { className: "title", title: heading }, heading),
    leaks ? make("span", { className: "tag" }, "leaking") : null,
    make("span", { className: "count" }, count === 1 ? "1 run" : count + " runs"));
};

// Links are followed with Enter on their cell (followLink): the tab key would stop at each of thousands.
const link = (href, title, ...content) => make("a", { className: "cell-link", href, title, onClick: follow, tabIndex: -1 }, ...content);

dagcomponentfuncs.RunLink = function (props) {
  const name = props.value || "unnamed", twin = props.data.twin;
  const mark = twin ? make("span", { className: "twin" }, " " + twin) : null;
  return link("/run?run=" + encodeURIComponent(props.data.run_id), twin ? `${name} (${twin})` : name, name, mark);
};

dagcomponentfuncs.Cell = function (props) {
  const cell = props.value;
  if (cell == null || typeof cell !== "object") return cell;
  return link(cell.href, cell.title, cell.text);
};

dagcomponentfuncs.Rank = function (props) {
  if (props.data.leaking === "true" && props.data.score != null) return make("span", { className: "cell-leak" }, "leaking");
  return make("span", { className: props.value === 1 ? "cell-rank-1" : "" }, props.value == null ? "–" : props.value);
};

dagcomponentfuncs.Family = function (props) {
  const dot = make("span", { className: "family-dot", style: { backgroundColor: props.data.colour }, "aria-hidden": "true" });
  return make("span", { className: "cell-family" }, dot, props.data.model);
};

dagcomponentfuncs.Interval = function (props) {
  const { score, low, high, validation, colour, live } = props.data;
  if (score == null) {
    const known = validation == null ? "–" : "validation " + validation.toFixed(3);
    return make("span", { className: "cell-news", title: live ? `${known}, ${live}` : known },
      make("span", null, known), live ? make("span", { className: "live" }, live) : null);
  }
  const from = props.low, width = Math.max(1e-6, props.high - props.low);
  const place = (value) => (100 * (value - from)) / width + "%";
  return make("span", { className: "cell-interval", title: low == null ? "" : `95 % interval ${low.toFixed(3)} to ${high.toFixed(3)}` },
    make("b", null, score.toFixed(3)),
    make("span", { className: "track" },
      low == null ? null : make("span", { className: "span", style: { left: place(low), width: (100 * (high - low)) / width + "%", background: colour } }),
      make("span", { className: "point", style: { left: place(score), background: colour } })));
};

dagcomponentfuncs.Heat = function (props) {
  if (props.value == null) return "–";
  return make("div", { className: "cell-heat", style: { background: heatColour(props.value) } }, props.value.toFixed(3));
};

dagcomponentfuncs.Started = function (props) {
  return make("span", { className: "cell-lines" }, ...String(props.value || "").split(" ").map((part) => make("span", { key: part }, part)));
};

dagcomponentfuncs.Status = function (props) {
  const { live, lost } = props.data, status = String(props.value || "").toLowerCase();
  const lines = lost ? ["no sign of life", (live.match(/since \d+-(\S+ \S+)/) || [])[1]] : live ? live.split(", ") : [status];
  return make("span", { className: "cell-lines cell-status " + (lost ? "LOST" : props.value) },
    ...lines.filter(Boolean).map((line, place) => make("span", { key: place }, place && lost ? "since " + line : line)));
};
