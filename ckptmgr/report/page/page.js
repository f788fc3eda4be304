"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const drawn = new Set();
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  function dressed(trace) {
    const { role, tones } = trace.meta;
    const made = { ...trace, meta: undefined };
    if (role === "tiles") {
      const tiles = tones.map((tone) => (tone < 0 ? colour("branch") : colour(`tile-${tone % 6}`)));
      const texts = tones.map((tone) => (tone < 0 ? colour("text") : "#ffffff"));
      made.marker = { colors: tiles, line: { width: 1, color: colour("card") }, pad: { t: 22, l: 3, r: 3, b: 3 } };
      made.textfont = { color: texts };
      made.pathbar = { visible: true, thickness: 24, textfont: { color: colour("text") } };
      made.tiling = { pad: 2 };
      return made;
    }
    const own = colour(role);
    made.marker = { size: role === "kept" || role === "line" || role === "muted" ? 6 : 10, ...trace.marker, color: own, line: { width: role === "dropped" ? 2 : 0, color: own } };
    made.line = { width: 2, ...trace.line, color: own, ...(role === "muted" ? { dash: "dot" } : {}) };
    if (trace.fill) made.fillcolor = `${own}2b`;
    return made;
  }

  function layout(figure, plot) {
    const hasLegend = figure.layout.showlegend !== false && figure.data.some((trace) => trace.name && trace.showlegend !== false);
    const isNarrow = plot.clientWidth < 420;
    const axis = (given) => ({ ...given, gridcolor: colour("grid"), zeroline: false, linecolor: colour("edge"), fixedrange: isNarrow });
    const made = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: 12, color: colour("soft") },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("muted"), font: { color: colour("text") } },
      margin: { l: 8, r: 12, t: hasLegend ? 34 : 12, b: 8 },
      dragmode: isNarrow ? false : "zoom",
      autosize: true,
      ...figure.layout,
    };
    if (made.xaxis) Object.assign(made, { xaxis: axis(made.xaxis), yaxis: axis(made.yaxis) });
    if (made.shapes) made.shapes = made.shapes.map((shape) => ({ ...shape, fillcolor: colour("band"), line: { width: 0 } }));
    return made;
  }

  function draw(plot) {
    const figure = figures[plot.dataset.figure];
    if (!figure) return;
    drawn.add(plot);
    Plotly.react(plot, figure.data.map(dressed), layout(figure, plot), { displayModeBar: false, responsive: true, showTips: false });
  }

  const plots = document.querySelectorAll("[data-figure]");
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "400px" },
  );
  plots.forEach((plot) => watcher.observe(plot));
  addEventListener("beforeprint", () => plots.forEach(draw));

  const button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  function recall() {
    try {
      return localStorage.getItem("ckptmgr-theme");
    } catch {
      return null;
    }
  }
  function show(theme) {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    drawn.forEach(draw);
  }
  let theme = themes.includes(recall()) ? recall() : "auto";
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try {
      localStorage.setItem("ckptmgr-theme", theme);
    } catch {
      // A page that may not remember starts as the system says.
    }
    show(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
  show(theme);

  const chosen = document.getElementById("tensor");
  chosen?.addEventListener("change", () => {
    for (const plot of document.querySelectorAll("[data-chosen]")) {
      plot.dataset.figure = `${plot.dataset.chosen}-${chosen.value}`;
      plot.setAttribute("aria-label", figures[plot.dataset.figure].summary);
      draw(plot);
    }
  });
})();
