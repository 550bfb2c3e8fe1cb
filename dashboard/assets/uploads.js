// What Dash's upload lacks: pictures from the clipboard, the order of a drop's files, and the refusal of large files
// before they are read, which the others of the same drop survive.
(function () {
  const LARGEST = 10_000_000;
  const PAGES = ["categorise", "attention"];
  const openPage = () => PAGES.find((page) => document.getElementById(page + "-upload"));
  const tell = (what, data) => openPage() && window.dash_clientside.set_props(openPage() + what, { data });

  // Returns the files as an event or an input holds them.
  const listOf = (files) => {
    const list = new DataTransfer();
    files.forEach((file) => list.items.add(file));
    return list;
  };

  const guard = (event) => {
    const place = event.target.closest && event.target.closest(PAGES.map((page) => `#${page}-upload`).join());
    if (!place || event.checked) return;
    const files = Array.from((event.dataTransfer || event.target).files || []);
    if (!files.length) return;
    const small = files.filter((file) => file.size <= LARGEST);
    const large = files.filter((file) => file.size > LARGEST).map((file) => file.name);
    tell("-drop", { names: files.map((file) => file.name), large, at: Date.now() });
    if (!large.length) return;
    if (event.type === "change" && small.length) {
      event.target.files = listOf(small).files;
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "change") event.target.value = "";
    else {
      const again = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: listOf(small) });
      again.checked = true;
      event.target.dispatchEvent(small.length ? again : new DragEvent("dragleave", { bubbles: true }));
    }
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
    if (file.size > LARGEST) return tell("-drop", { names: ["pasted image"], large: ["pasted image"], at: Date.now() });
    const reader = new FileReader();
    reader.onload = () => tell("-paste", { contents: reader.result, at: Date.now() });
    reader.readAsDataURL(file);
  });
})();
