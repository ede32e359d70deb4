// Every piece of visible text whose contrast with what lies behind it is under WCAG AA: [contrast, colour, ground, text].
(() => {
  const parse = (text) => { const found = text.match(/[\d.]+/g).map(Number); return text.startsWith("color(srgb") ? found.map((one, index) => (index < 3 ? one * 255 : one)) : found; };
  const over = (top, under) => { const alpha = top[3] ?? 1; return [0, 1, 2].map((index) => top[index] * alpha + under[index] * (1 - alpha)); };
  const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  const ground = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = new Map();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || !element.checkVisibility() || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(element.tagName)) continue;
    const style = getComputedStyle(element), inSvg = element.closest("svg"), under = ground(element);
    const colour = over(parse(inSvg ? style.fill : style.color), under);
    const [light, dark] = [luminance(colour), luminance(under)].sort((a, b) => b - a), ratio = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) found.set(`${style.color}${under}`, [ratio, style.color, under.join(), text.slice(0, 60)]);
  }
  return [...found.values()];
})()
