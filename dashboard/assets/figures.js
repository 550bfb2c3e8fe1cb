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

// Saves the figure above a button, whatever the theme, on white. One that is still being drawn is waited for.
async function drawnPlot(figure) {
  while (figure.isConnected) {
    const plot = figure.querySelector(".js-plotly-plot");
    if (plot && plot._fullLayout && plot.querySelector(".main-svg")) return plot;
    await new Promise((passed) => setTimeout(passed, 100));
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest && event.target.closest(".save-figure");
  const plot = button && (await drawnPlot(button.parentElement));
  if (!plot) return;
  const filename = button.title.replace(/^Save as SVG: /, "").toLowerCase().replace(/[^a-z0-9]+/g, "-");
  const { clientWidth: width, clientHeight: height } = plot;
  window.Plotly.downloadImage(plot, { format: "svg", filename, width, height, setBackground: "white" });
});
