"use strict";
// Sorting, filtering, pointing. Everything that is shown is in the page already; without this it is plain tables.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  const tip = one("tip"), hiddenStrategies = new Set();
  const value = (id) => (one(id) ? one(id).value : "");
  document.documentElement.classList.add("scripted");

  // --- filters
  const strategyOf = (element) => (element.getAttribute("class") || "").match(/(?:^| )s(\d+)/)?.[1];
  const pointOf = (element) => element.getAttribute("class").match(/(?:^| )p(\d+)/)?.[1];
  const isHidden = (spot) => spot.style.display === "none";

  function filter() {
    const workload = value("workload"), point = value("point"), model = value("model");
    const differs = (wanted, found) => wanted !== "" && found !== undefined && found !== wanted;
    for (const section of all(".workload")) section.hidden = differs(workload, section.dataset.workload);
    for (const section of all(".point")) section.hidden = differs(point, section.dataset.point);
    for (const figure of all("figure[data-model]")) figure.hidden = differs(model, figure.dataset.model);
    for (const head of all("th[data-model]")) {
      const column = head.cellIndex, away = differs(model, head.dataset.model);
      head.hidden = away;
      for (const body of head.closest("table").tBodies) body.rows[0].cells[column].hidden = away;
    }
    for (const body of all("tbody[data-s]")) body.hidden = hiddenStrategies.has(body.dataset.s);
    for (const mark of all(".plot .mark, .plot .line, .plot .spot")) {
      const gone = hiddenStrategies.has(strategyOf(mark)) || (mark.matches(".mark") && differs(point, pointOf(mark)));
      mark.style.display = gone ? "none" : "";
    }
    for (const box of all(".key input")) box.checked = !hiddenStrategies.has(box.value);
    const shown = all(".board tbody").filter((body) => body.offsetParent !== null).length;
    one("count").textContent = `${shown} rows shown`;
  }

  one("filters").addEventListener("change", filter);
  one("filters").addEventListener("submit", (event) => event.preventDefault());
  one("point").value = document.body.dataset.defaultPoint;
  if (one("model")) one("model").value = "0";
  for (const box of all(".key input")) box.addEventListener("change", () => {
    if (box.checked) hiddenStrategies.delete(box.value); else hiddenStrategies.add(box.value);
    filter();
  });
  for (const button of all("[data-pick]")) button.addEventListener("click", () => {
    hiddenStrategies.clear();
    if (button.dataset.pick === "none") for (const box of all(".key input")) hiddenStrategies.add(box.value);
    filter();
  });

  // --- sorting: figures by value, words by letter, n/a last
  const key = (cell) => {
    const text = cell.textContent.trim();
    if (!cell.classList.contains("n")) return text.toLowerCase();
    const figure = parseFloat(text.replace("−", "-"));
    return Number.isNaN(figure) ? null : figure;
  };

  function sort(head) {
    const table = head.closest("table"), column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    const bodies = [...table.tBodies].map((body) => [key(body.rows[0].cells[column]), body]);
    bodies.sort(([a], [b]) => {
      if (a === b) return 0;
      if (a === null || b === null) return a === null ? 1 : -1;
      return (a < b ? -1 : 1) * (down ? -1 : 1);
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.append(...bodies.map(([, body]) => body));
  }

  for (const head of all(".sortable thead th")) {
    if (head.textContent === "exits") continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head));
    head.append(button);
  }

  // --- a row opens
  for (const body of all(".board tbody")) {
    const more = body.querySelector(".more"), head = body.querySelector("th");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "row-toggle";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", `What made ${head.textContent}`);
    button.addEventListener("click", () => {
      const list = more.querySelector("dl"), manifest = body.closest(".workload").querySelector(".manifest");
      if (!list.dataset.whole) for (const fact of manifest.querySelectorAll("tr")) {
        for (const [name, cell] of [["dt", fact.cells[0]], ["dd", fact.cells[1]]]) {
          list.append(Object.assign(document.createElement(name), { textContent: cell.textContent }));
        }
      }
      list.dataset.whole = "yes"; // what all rows of a workload share stands in the file once
      more.hidden = !more.hidden;
      button.setAttribute("aria-expanded", String(!more.hidden));
    });
    more.hidden = true;
    more.querySelector("details").open = true;
    head.prepend(button);
  }

  function reveal(id) {
    const body = one(id);
    if (!body) return false;
    if (body.tagName === "DETAILS") body.open = true;
    const point = body.closest(".point"), workload = body.closest(".workload");
    if (point && value("point") !== "") one("point").value = point.dataset.point;
    if (workload && value("workload") !== "") one("workload").value = workload.dataset.workload;
    hiddenStrategies.delete(body.dataset.s);
    filter();
    for (const lit of all(".lit")) lit.classList.remove("lit");
    body.classList.add("lit");
    body.scrollIntoView({ block: "center" });
    (body.querySelector("button, summary") || body).focus({ preventScroll: true });
    return true;
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && reveal(link.getAttribute("href").slice(1))) {
      event.preventDefault();
      history.replaceState(null, "", link.getAttribute("href"));
    }
  });

  // --- pointing at charts
  const place = (spot) => {
    const circle = spot.querySelector("circle");
    if (circle) return [+circle.getAttribute("cx"), +circle.getAttribute("cy")];
    return spot.querySelector("path").getAttribute("d").match(/^M(-?[\d.]+) (-?[\d.]+)/).slice(1).map(Number);
  };

  function highlight(strategy) {
    for (const plot of all(".plot")) {
      plot.classList.toggle("dim", strategy !== undefined && plot.querySelector(".line") !== null);
      for (const line of all(".line", plot)) line.classList.toggle("on", strategyOf(line) === strategy);
      for (const mark of all(".mark", plot)) mark.classList.toggle("same", strategyOf(mark) === strategy);
    }
  }

  function tell(spot, x, y) {
    for (const on of all(".spot.on")) on.classList.remove("on");
    highlight(spot ? strategyOf(spot) : undefined);
    tip.hidden = !spot;
    if (!spot) return;
    spot.classList.add("on");
    tip.textContent = spot.getAttribute("aria-label");
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(4, x + 12), window.innerWidth - box.width - 4);
    tip.style.left = `${left}px`;
    tip.style.top = `${y - box.height - 12 < 4 ? y + 16 : y - box.height - 12}px`;
  }

  function tellBeside(spot) {
    const box = spot.getBoundingClientRect();
    tell(spot, box.right, box.top);
  }

  window.addEventListener("scroll", () => {
    if (tip.hidden) return;
    const focused = document.activeElement.closest(".spot");
    if (focused) tellBeside(focused); else tell(null);
  }, { passive: true });

  for (const plot of all(".plot")) {
    const spots = all(".spot", plot).map((spot) => [spot, ...place(spot)]);
    for (const [spot] of spots) {
      const title = spot.querySelector("title"); // the browser's own tip would cover ours
      spot.setAttribute("aria-label", title.textContent);
      if (spot.tagName !== "a") spot.setAttribute("role", "img");
      title.remove();
      spot.addEventListener("focus", () => tellBeside(spot));
      spot.addEventListener("blur", () => tell(null));
    }
    const nearest = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(plot.getScreenCTM().inverse());
      let best = null, least = 16;
      for (const [spot, x, y] of spots) {
        const favour = spot.matches(".mark") ? 2 : spot.hasAttribute("href") ? 1 : 0;
        const distance = Math.hypot(x - at.x, y - at.y) - favour;
        if (distance < least && !isHidden(spot)) [best, least] = [spot, distance];
      }
      return best;
    };
    plot.addEventListener("pointermove", (event) => tell(nearest(event), event.clientX, event.clientY));
    plot.addEventListener("pointerleave", () => tell(null));
    plot.addEventListener("click", (event) => {
      const byKey = event.detail === 0; // Enter on a mark: there is no place to look at
      const spot = byKey ? event.target.closest(".spot") : nearest(event);
      const link = spot && spot.getAttribute("href");
      if (!link || event.pointerType === "touch" && !spot.classList.contains("ready")) {
        for (const ready of all(".ready")) ready.classList.remove("ready");
        if (spot) spot.classList.add("ready"); // a finger reads first, and follows the second time
        event.preventDefault();
        event.stopPropagation();
        tell(spot, event.clientX, event.clientY);
        return;
      }
      event.preventDefault();
      event.stopPropagation();
      tell(null);
      reveal(link.slice(1));
      history.replaceState(null, "", link);
    });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tell(null); });
  for (const label of all(".key, tbody[data-s]")) {
    const strategy = label.dataset.s || strategyOf(label);
    label.addEventListener("mouseenter", () => highlight(strategy));
    label.addEventListener("mouseleave", () => highlight(undefined));
  }

  // --- csv of what is shown
  // a spreadsheet runs text that begins like a formula; figures such as +0.52 are none
  const isFigure = (text) => /^[+-]?\d[\d.]*(e[+-]?\d+)?[x%]?$/i.test(text);
  const plain = (text) => (/^[=+\-@＝＋－＠']/.test(text) && !isFigure(text) ? `'${text}` : text);
  const quoted = (text) => (/[",\r\n]/.test(plain(text)) ? `"${plain(text).replaceAll('"', '""')}"` : plain(text));
  one("download").addEventListener("click", () => {
    const lines = [];
    for (const table of all(".board")) {
      if (table.offsetParent === null) continue;
      const label = table.parentElement.getAttribute("aria-label");
      const heads = [...table.tHead.rows[0].cells].filter((cell) => !cell.hidden && cell.textContent !== "exits");
      const line = (cells) => cells.map((text) => quoted(text)).join(",");
      lines.push(line(["table", ...heads.map((cell) => cell.textContent)]));
      for (const body of table.tBodies) {
        if (body.hidden) continue;
        const cells = heads.map((head) => body.rows[0].cells[head.cellIndex]);
        lines.push(line([label, ...cells.map((cell) => (cell.querySelector(".name") || cell).textContent.trim())]));
      }
    }
    save(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }), "leaderboard.csv");
  });

  one("download-all").addEventListener("click", async (event) => {
    const packed = Uint8Array.from(atob(event.target.dataset.gzip), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    save(new Blob([await new Response(stream).arrayBuffer()], { type: "text/csv" }), "rows.csv");
  });

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  filter();
  if (location.hash) reveal(location.hash.slice(1));
})();
