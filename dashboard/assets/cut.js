// What is cut off with an ellipsis says all of it where the pointer is.
(function () {
  const LEVELS = 4; // a link or a cell may lie within what cuts it off
  const isCut = (part) => {
    const { textOverflow, webkitLineClamp } = getComputedStyle(part);
    const across = textOverflow === "ellipsis" || part.tagName === "INPUT";
    return (across && part.scrollWidth > part.clientWidth) ||
      (webkitLineClamp !== "none" && part.scrollHeight > part.clientHeight + 1);
  };
  document.addEventListener("mouseover", (event) => {
    let part = event.target;
    for (let level = 0; level < LEVELS && part instanceof HTMLElement; level++, part = part.parentElement) {
      const ours = "cut" in part.dataset;
      if (part.title && !ours) continue;
      if (isCut(part)) {
        part.title = part.value || part.textContent;
        part.dataset.cut = "";
      } else if (ours) {
        part.removeAttribute("title");
        delete part.dataset.cut;
      }
    }
  });
})();
