"use strict";
(() => {
  // Arrow keys go from tile to tile; the mosaic itself is the stop of the Tab key.
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let focused = "";
  document.addEventListener("keydown", (event) => {
    const step = steps[event.key], mosaic = document.activeElement?.closest?.("svg.mosaic");
    if (!step || !mosaic) return;
    const place = document.activeElement.id.match(/^t-(\d+)-(\d+)-(\d+)$/);
    const next = place
      ? document.getElementById(`t-${place[1]}-${+place[2] + step[0]}-${+place[3] + step[1]}`)
      : mosaic.querySelector("a.tile");
    next?.focus();
    event.preventDefault();
  });
  // A tile opens in a dialog; without this script it opens as a page.
  document.addEventListener("click", (event) => {
    const tile = event.target.closest?.("a.tile");
    if (!tile || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    htmx.ajax("GET", tile.getAttribute("href"), { target: "#detail-content", swap: "innerHTML" })
      .then(() => document.getElementById("detail").showModal());
  });
  // A column that is replaced would lose the focus.
  document.addEventListener("focusin", (event) => { focused = event.target.id; });
  document.addEventListener("htmx:sse:after:message", () => {
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus();
  });
  // The page says when what it shows is old: the server sends something at least every ten seconds.
  let heard = Date.now();
  const hear = () => { heard = Date.now(); document.body.classList.remove("is-offline"); };
  const lose = () => {
    if (document.body.classList.contains("is-offline")) return;
    document.getElementById("offline-since").textContent = new Date(heard).toLocaleTimeString();
    document.body.classList.add("is-offline");
  };
  document.addEventListener("htmx:sse:before:message", hear);
  document.addEventListener("htmx:sse:after:connection", (event) => {
    if (event.detail.connection.status === 401) location.reload();
    hear();
  });
  document.addEventListener("htmx:sse:error", (event) => { if (event.detail.status === 401) location.reload(); lose(); });
  document.addEventListener("htmx:sse:before:connection", (event) => { if (event.detail.connection.attempt > 1) lose(); });
  setInterval(() => { if (!document.hidden && Date.now() - heard > 25000) lose(); }, 5000);
})();
