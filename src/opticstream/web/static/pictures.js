"use strict";
(() => {
  const place = document.getElementById("viewer");
  if (!place) return;
  const viewer = OpenSeadragon({
    element: place, drawer: "canvas", showNavigationControl: false, showNavigator: true, maxZoomPixelRatio: 8,
    imageSmoothingEnabled: true, tileSources: place.dataset.zoomable || { type: "image", url: place.dataset.picture },
  });
  viewer.addHandler("open", () => { place.dataset.ready = "yes"; });
  viewer.addHandler("open-failed", () => { place.textContent = "This picture cannot be shown."; });
  const zoom = (factor) => () => { viewer.viewport.zoomBy(factor); viewer.viewport.applyConstraints(); };
  viewer.addHandler("zoom", (event) => { place.dataset.zoom = (event.zoom / viewer.viewport.getHomeZoom()).toFixed(2); });
  document.getElementById("zoom-in").addEventListener("click", zoom(1.6));
  document.getElementById("zoom-out").addEventListener("click", zoom(1 / 1.6));
  document.getElementById("whole").addEventListener("click", () => viewer.viewport.goHome());
})();
