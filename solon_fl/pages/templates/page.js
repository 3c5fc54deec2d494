"use strict";
// Charts: pointing at a curve, or pressing the arrow keys, shows the values there.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg"), pointer = chart.querySelector(".pointer"), hint = chart.querySelector(".hint");
  if (!pointer) continue;
  const curves = [...chart.querySelectorAll("[data-points]")].map(path => ({
    path, value: chart.querySelector(`[data-value="${path.dataset.curve}"]`),
    points: path.dataset.points.split(";").map(point => {
      const [across, up, x, y] = point.split(",");
      return {across: +across, up: +up, x, y};
    }),
  }));
  const places = [...new Set(curves.flatMap(curve => curve.points.map(point => point.across)))].sort((a, b) => a - b);
  const last = curves.map(curve => curve.value.textContent), before = hint.textContent;
  let at = null;
  const nearest = (list, across) => list.reduce((a, b) => Math.abs(b - across) < Math.abs(a - across) ? b : a);
  const show = (across, up) => {
    at = nearest(places, across);
    pointer.setAttribute("x1", at); pointer.setAttribute("x2", at); pointer.style.visibility = "visible";
    let x = "", best = null;
    for (const curve of curves) {
      // The last point at or before this position.
      const point = curve.points.findLast(point => point.across <= at + .05);
      curve.value.textContent = point ? point.y : "–";
      if (point && Math.abs(point.across - at) < .06) x = point.x;
      if (point && up !== undefined && (!best || Math.abs(point.up - up) < best.far))
        best = {curve, far: Math.abs(point.up - up)};
    }
    hint.textContent = `${chart.dataset.x} ${x}`;
    chart.classList.toggle("faint", !!best && best.far < 14);
    for (const curve of curves) curve.path.classList.toggle("on", !!best && curve === best.curve);
  };
  const leave = () => {
    at = null; pointer.style.visibility = "hidden"; hint.textContent = before; chart.classList.remove("faint");
    curves.forEach((curve, number) => { curve.value.textContent = last[number]; });
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    show((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
  });
  svg.addEventListener("pointerleave", leave);
  chart.addEventListener("blur", leave);
  chart.addEventListener("keydown", event => {
    const number = at === null ? places.length - 1 : places.indexOf(at);
    const next = {ArrowLeft: number - 1, ArrowRight: number + 1, Home: 0, End: places.length - 1}[event.key];
    if (next === undefined) return;
    event.preventDefault();
    show(places[Math.min(Math.max(next, 0), places.length - 1)]);
  });
}

// Axes: shows the charts over the chosen x axis.
for (const input of document.querySelectorAll(".axis input")) {
  const choose = () => {
    for (const part of document.querySelectorAll("[data-axis]")) part.hidden = part.dataset.axis !== input.value;
  };
  input.addEventListener("change", choose);
  if (input.checked) choose();
}

// The live page: shows its age, and reloads it without losing the reader's position.
const seconds = +document.body.dataset.reload, age = document.querySelector("[data-written]");
if (age) {
  const tell = () => {
    const old = Math.max(0, Math.round(Date.now() / 1000 - age.dataset.written));
    age.textContent = old < 120 ? `${old} s ago` : old < 7200 ? `${Math.round(old / 60)} min ago` : `${Math.round(old / 3600)} h ago`;
  };
  tell();
  setInterval(tell, 1000);
}
if (seconds) {
  const key = "solon " + location.pathname, details = [...document.querySelectorAll("details")];
  try {
    const kept = JSON.parse(sessionStorage.getItem(key));
    if (kept) {
      details.forEach((part, number) => { part.open = kept.open[number]; });
      scrollTo(0, kept.at);
    }
    sessionStorage.removeItem(key);
  } catch {}
  setInterval(() => {
    // Not while a reader uses the page, and not while it is hidden.
    if (document.hidden || document.querySelector(".chart:hover, .chart:focus") || String(getSelection())) return;
    try {
      sessionStorage.setItem(key, JSON.stringify({at: scrollY, open: details.map(part => part.open)}));
    } catch {}
    location.reload();
  }, 1000 * seconds);
}
