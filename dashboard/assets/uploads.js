// What Dash's upload lacks: pictures from the clipboard, and the refusal of large files before they are read.
(function () {
  const LARGEST = 10_000_000;
  const PAGES = ["categorise", "attention"];
  const openPage = () => PAGES.find((page) => document.getElementById(page + "-upload"));
  const tell = (what, data) => openPage() && window.dash_clientside.set_props(openPage() + what, { data });
  const refuse = (names) => tell("-refused", { names, at: Date.now() });

  const guard = (event) => {
    if (!event.target.closest || !event.target.closest(PAGES.map((page) => `#${page}-upload`).join())) return;
    const files = Array.from((event.dataTransfer || event.target).files || []);
    const large = files.filter((file) => file.size > LARGEST).map((file) => file.name);
    if (!large.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.target.value) event.target.value = "";
    refuse(large);
  };
  for (const name of ["drop", "change"]) document.addEventListener(name, guard, true);

  // Dash's upload leaves its input without a name for screen readers.
  new MutationObserver(() => {
    const input = openPage() && document.querySelector(`#${openPage()}-upload input:not([aria-label])`);
    if (input) input.setAttribute("aria-label", "Choose image files");
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener("paste", (event) => {
    const item = Array.from((event.clipboardData || {}).items || []).find((each) => each.type.startsWith("image/"));
    const file = item && item.getAsFile();
    if (!file || !openPage()) return;
    if (file.size > LARGEST) return refuse(["pasted image"]);
    const reader = new FileReader();
    reader.onload = () => tell("-paste", { contents: reader.result, at: Date.now() });
    reader.readAsDataURL(file);
  });
})();
