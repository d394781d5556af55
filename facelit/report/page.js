"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const root = document.documentElement;
  const touch = matchMedia("(pointer: coarse)").matches;
  const near = new WeakSet(); // charts that have been near the screen: the others are not drawn yet

  // Colours in charts are names of CSS variables.
  function coloured(value, style) {
    if (Array.isArray(value) && typeof value[0] !== "object") return value;
    if (Array.isArray(value)) return value.map((one) => coloured(one, style));
    if (value === null || typeof value !== "object") return value;
    const result = {};
    for (const [key, inner] of Object.entries(value))
      result[key] =
        /color$/.test(key) && typeof inner === "string" && inner.startsWith("--")
          ? style.getPropertyValue(inner).trim()
          : coloured(inner, style);
    return result;
  }

  function draw(element) {
    const chart = page.charts[element.dataset.chart];
    const width = element.clientWidth;
    if (!chart || !width || !near.has(element)) return;
    const { data, layout } = coloured(chart, getComputedStyle(root));
    Object.assign(layout, { width, height: chart.height });
    if (!touch && !chart.fixed) {
      layout.dragmode = "zoom";
      layout.xaxis.fixedrange = layout.yaxis.fixedrange = false;
    }
    Plotly.react(element, data, layout, {
      displaylogo: false,
      displayModeBar: touch || chart.fixed ? false : "hover",
      modeBarButtons: [["toImage", "resetScale2d"]],
    });
    element.dataset.width = width;
  }

  const elements = [...document.querySelectorAll("[data-chart]")];
  const drawAll = () => elements.forEach(draw);

  const round = (threshold) => Math.round(threshold * 1e4) / 1e4;
  const count = (number) => number.toLocaleString("en-US");
  function rate(value) {
    if (value === 0 || value === 1) return String(value);
    return value < 1e-3 ? value.toExponential(2) : value.toFixed(4);
  }

  // One set's threshold: the slider, the number, the buttons and the histogram set it; the figures and the curves' markers follow.
  class Panel {
    constructor(element) {
      this.element = element;
      this.set = page.sets[element.dataset.set];
      this.histogram = element.querySelector("[data-chart]");
      this.slider = element.querySelector("input[type=range]");
      this.number = element.querySelector("input[type=number]");
      for (const one of this.set.checkpoints) {
        one.accepted = { genuine: [...one.genuine], impostor: [...one.impostor] };
        for (const counts of Object.values(one.accepted))
          for (let place = counts.length - 2; place >= 0; place--) counts[place] += counts[place + 1];
      }
      this.slider.addEventListener("input", () => this.move(round(this.slider.valueAsNumber)));
      this.number.addEventListener("change", () => this.typed());
      element.querySelectorAll("[name^=checkpoint]").forEach((radio) =>
        radio.addEventListener("change", () => this.choose(Number(radio.value))),
      );
      const log = element.querySelector("input[type=checkbox]");
      log.addEventListener("change", () => {
        Object.assign(this.chart().layout.yaxis, log.checked ? { type: "log", tickformat: "~e", dtick: 1 } : { type: "linear", tickformat: ".0%", dtick: null });
        this.show();
      });
      this.followPointer();
      const start = element.querySelector("[name^=checkpoint]:checked");
      this.choose(start ? Number(start.value) : 0);
    }

    chart() {
      return page.charts[this.histogram.dataset.chart];
    }

    choose(place) {
      this.checkpoint = this.set.checkpoints[place];
      const box = this.element.querySelector("[data-presets]");
      box.replaceChildren(
        ...this.checkpoint.presets.map(([name, threshold]) => {
          const button = document.createElement("button");
          button.type = "button";
          button.textContent = name;
          button.title = `threshold ${threshold}`;
          button.addEventListener("click", () => this.move(threshold));
          return button;
        }),
      );
      this.chart().data = this.checkpoint.histogram;
      this.move(this.checkpoint.presets.length ? this.checkpoint.presets[0][1] : round(this.set.ends[1]));
    }

    typed() {
      const value = this.number.valueAsNumber;
      const exact = this.checkpoint.presets.some(([, threshold]) => threshold === value);
      this.move(Number.isFinite(value) ? (exact ? value : round(value)) : this.threshold);
    }

    followPointer() {
      const at = (event) => {
        const { l, r } = this.chart().layout.margin;
        const box = this.histogram.getBoundingClientRect();
        const [low, high] = this.set.ends;
        const share = (event.clientX - box.left - l) / (box.width - l - r);
        this.move(round(Math.min(high, Math.max(low, low + share * (high - low)))));
      };
      let held = false;
      this.histogram.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        held = true;
        this.histogram.setPointerCapture(event.pointerId); // a finger's moves go on to come here
        at(event);
      });
      // On the window: a pointer that is held may leave the chart, and the chart may lose it.
      const follow = (event) => {
        held &&= event.buttons !== 0;
        if (held) at(event);
      };
      addEventListener("pointermove", follow, true);
      for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => (held = false), true);
    }

    // Pairs with score >= threshold: exact at multiples of 1e-4 and at the buttons' thresholds.
    accepted(threshold) {
      const { thresholds, accepted } = this.checkpoint;
      let low = 0;
      let high = thresholds.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (thresholds[middle] >= threshold) high = middle;
        else low = middle + 1;
      }
      return [accepted.genuine[low] ?? 0, accepted.impostor[low] ?? 0];
    }

    move(threshold) {
      this.threshold = threshold;
      this.slider.value = threshold;
      this.number.value = threshold;
      const [genuine, impostor] = this.accepted(threshold);
      const { genuine: allGenuine, impostor: allImpostor } = this.set;
      this.far = impostor / allImpostor;
      this.tar = genuine / allGenuine;
      const texts = {
        far: rate(this.far),
        frr: rate((allGenuine - genuine) / allGenuine),
        tar: rate(this.tar),
        accuracy: rate((genuine + allImpostor - impostor) / (allGenuine + allImpostor)),
        "genuine-accepted": count(genuine),
        "genuine-rejected": count(allGenuine - genuine),
        "impostor-accepted": count(impostor),
        "impostor-rejected": count(allImpostor - impostor),
      };
      for (const [name, text] of Object.entries(texts))
        this.element.querySelectorAll(`[data-figure=${name}]`).forEach((one) => (one.textContent = text));
      this.element.querySelectorAll("[data-presets] button").forEach((button, place) =>
        button.setAttribute("aria-pressed", this.checkpoint.presets[place][1] === threshold),
      );
      if (!this.waiting) {
        this.waiting = true;
        requestAnimationFrame(() => {
          this.waiting = false;
          this.show();
        });
      }
    }

    show() {
      const x = Math.min(this.set.ends[1], Math.max(this.set.ends[0], this.threshold));
      const { layout } = this.chart();
      layout.shapes = [
        { type: "rect", x0: this.set.ends[0], x1: x, y0: 0, y1: 1, yref: "paper", fillcolor: "--shade", line: { width: 0 }, layer: "below" },
        { type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: "--ink", width: 2.5 } },
        { type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: 1, yref: "paper", x0: -7, x1: 7, y0: -7, y1: 7, fillcolor: "--ink", line: { width: 0 } },
      ];
      draw(this.histogram);
      for (const [id, y, least] of [[this.set.roc, this.tar, this.set.bottom], [this.set.det, 1 - this.tar, this.set.least]]) {
        const marker = page.charts[id].data.at(-1);
        marker.x = [Math.max(this.far, this.set.floor)];
        marker.y = [Math.max(y, least)];
        marker.marker.color = `--c${this.checkpoint.colour % 6}`;
        draw(document.querySelector(`[data-chart="${id}"]`));
      }
    }
  }

  document.querySelectorAll("[data-set]").forEach((element) => new Panel(element));
  const approach = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        approach.unobserve(target);
        near.add(target);
        draw(target);
      }
    },
    { rootMargin: "600px" },
  );
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) if (Number(target.dataset.width) !== target.clientWidth) draw(target);
  });
  for (const element of elements) {
    approach.observe(element);
    sizes.observe(element);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  // Charts have a width in pixels: on paper they are drawn anew, in light colours.
  addEventListener("beforeprint", () => {
    root.classList.add("paper");
    elements.forEach((element) => near.add(element));
    drawAll();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("paper");
    drawAll();
  });
})();
