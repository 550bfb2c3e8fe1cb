// What Dash's upload does not do: pictures from the clipboard, and files that are too large refused before they are read.
(function () {
  const LARGEST = 10_000_000;
  const tell = (id, data) => document.getElementById("categorise-upload") && window.dash_clientside.set_props(id, { data });
  const refuse = (names) => tell("categorise-refused", { names, at: Date.now() });

  const guard = (event) => {
    if (!event.target.closest || !event.target.closest("#categorise-upload")) return;
    const files = Array.from((event.dataTransfer || event.target).files || []);
    const large = files.filter((file) => file.size > LARGEST).map((file) => file.name);
    if (!large.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.target.value) event.target.value = "";
    refuse(large);
  };
  for (const name of ["drop", "change"]) document.addEventListener(name, guard, true);

  // Dash's upload leaves its input without a name for those who hear the page.
  new MutationObserver(() => {
    const input = document.querySelector("#categorise-upload input:not([aria-label])");
    if (input) input.setAttribute("aria-label", "Pictures to categorise");
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener("paste", (event) => {
    const item = Array.from((event.clipboardData || {}).items || []).find((each) => each.type.startsWith("image/"));
    const file = item && item.getAsFile();
    if (!file || !document.getElementById("categorise-upload")) return;
    if (file.size > LARGEST) return refuse(["pasted picture"]);
    const reader = new FileReader();
    reader.onload = () => tell("categorise-paste", { contents: reader.result, at: Date.now() });
    reader.readAsDataURL(file);
  });
})();
