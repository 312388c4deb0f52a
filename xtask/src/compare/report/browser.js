// Put into a copy of the page by browser.rs: says what is wrong with it, as JSON in the page.
(() => {
  const faults = [];
  const root = document.documentElement;
  const told = (element) => `${element.tagName} "${element.textContent.trim().slice(0, 40)}"`;

  const wide = (when) => {
    if (root.scrollWidth > innerWidth) faults.push(`${when}: the page is ${root.scrollWidth} wide`);
    for (const element of document.querySelectorAll('h1,h2,h3,h4,p,li,dt,dd,summary,figcaption')) {
      if (element.getClientRects().length && element.scrollWidth > element.clientWidth + 1)
        faults.push(`${when}: ${told(element)} is wider than its box`);
    }
  };

  // Of colours as the browser tells them: rgb(r, g, b).
  const light = (colour) => {
    const parts = colour.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = getComputedStyle(document.body).backgroundColor;
  const contrast = (colour) => {
    const [a, b] = [light(colour), light(page)].sort((a, b) => b - a);
    return (a + 0.05) / (b + 0.05);
  };
  const readable = (selector, least) => {
    for (const element of document.querySelectorAll(selector)) {
      const found = contrast(getComputedStyle(element).color);
      if (found < least) return faults.push(`${selector}: contrast ${found.toFixed(1)}, least ${least}`);
    }
  };

  const figures = () => {
    for (const svg of document.querySelectorAll('.panel svg')) {
      const frame = svg.getBoundingClientRect();
      const name = svg.querySelector('title').textContent;
      const texts = [...svg.querySelectorAll('text')].map((text) => [text, text.getBoundingClientRect()]);
      const scale = frame.width / svg.viewBox.baseVal.width;
      texts.forEach(([text, box], nth) => {
        const size = parseFloat(getComputedStyle(text).fontSize) * scale;
        if (size < 10) faults.push(`${name}: ${told(text)} is ${size.toFixed(1)} px high`);
        if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
          faults.push(`${name}: ${told(text)} is cut off`);
        for (const [other, there] of texts.slice(0, nth)) {
          const across = Math.min(box.right, there.right) - Math.max(box.left, there.left);
          const down = Math.min(box.bottom, there.bottom) - Math.max(box.top, there.top);
          // A line's box is higher than its letters.
          if (across > 0.5 && down > 3) faults.push(`${name}: ${told(text)} lies over ${told(other)}`);
        }
      });
    }
  };

  wide('folded');
  figures();
  readable('p,li,td,th,dd,dt,small,summary,a', 4.5);
  readable('svg text', 4.5);
  readable('.panel svg g[class^=c]', 3);
  const height = root.scrollHeight;
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  document.querySelectorAll('details').forEach((details) => (details.open = true));
  wide('unfolded');
  document.querySelectorAll('details').forEach((details) => (details.open = false));

  const found = document.createElement('script');
  found.type = 'text/plain';
  found.id = 'found';
  found.textContent = JSON.stringify({ faults: faults.slice(0, 20), height, width: innerWidth, dark }).replace(/[<>&]/g, '?');
  document.body.append(found);
})();
