// The page: figures open enlarged, candidates can be hidden, everything is unfolded for print.
"use strict";
(() => {
  const box = document.getElementById("lightbox");
  const plate = document.getElementById("plate");
  let opener = null;

  const visible = () => [...document.querySelectorAll("main .zoom")].filter((button) => button.offsetParent !== null);

  const show = (button) => {
    const copy = button.querySelector("svg").cloneNode(true);
    const [, , width, height] = copy.getAttribute("viewBox").split(/[\s,]+/).map(Number);
    copy.style.setProperty("--shape", width / height);
    copy.removeAttribute("aria-hidden");
    copy.setAttribute("role", "img");
    copy.setAttribute("aria-label", button.getAttribute("aria-label").replace("Enlarge. ", ""));
    plate.replaceChildren(copy);
    document.getElementById("plate-text").textContent = button.parentNode.querySelector("figcaption").textContent;
    opener = button;
    if (!box.open) box.showModal();
  };
  const step = (by) => {
    const all = visible();
    if (all.length) show(all[(all.indexOf(opener) + by + all.length) % all.length]);
  };
  const actions = { before: () => step(-1), after: () => step(1), close: () => box.close() };

  for (const button of document.querySelectorAll("main .zoom")) button.addEventListener("click", () => show(button));
  box.addEventListener("click", (event) => {
    const action = event.target.closest("[data-do]");
    if (action) actions[action.dataset.do]();
    else if (event.target === plate) box.close();
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  box.addEventListener("close", () => {
    plate.replaceChildren();
    if (opener) {
      opener.focus({ preventScroll: true });
      opener.scrollIntoView({ block: "nearest" });
    }
  });

  for (const chip of document.querySelectorAll("[data-candidate]")) {
    chip.addEventListener("click", () => {
      const shown = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", String(shown));
      for (const part of document.querySelectorAll(".of-" + chip.dataset.candidate)) part.classList.toggle("gone", !shown);
      window.dispatchEvent(new Event("resize"));
    });
  }

  let unfolded = [];
  window.addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const part of unfolded) part.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const part of unfolded) part.open = false;
  });
})();
