// Dash gives up on Plotly after 30 seconds, for good: on a slow line or a busy machine no figure would ever come. What
// stands in Plotly's place until then asks for it when the first figure does, and waits for as long as it takes.
(function () {
  let coming = null;
  const load = () =>
    new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = window._dashPlotlyJSURL;
      script.onload = () => done();
      script.onerror = () => failed(new Error("Plotly could not be loaded"));
      document.body.appendChild(script);
    });
  if (!window.Plotly) window.Plotly = { then: (done, failed) => (coming = coming || load()).then(done, failed) };
})();

// Saves the figure above a button, whatever the theme, on white.
document.addEventListener("click", (event) => {
  const button = event.target.closest && event.target.closest(".save-figure");
  const plot = button && button.parentElement.querySelector(".js-plotly-plot");
  if (!plot) return;
  const name = button.title.replace(/^Save as SVG: /, "").toLowerCase().replace(/[^a-z0-9]+/g, "-");
  window.Plotly.downloadImage(plot, { format: "svg", filename: name, width: plot.clientWidth, height: plot.clientHeight, setBackground: "white" });
});
