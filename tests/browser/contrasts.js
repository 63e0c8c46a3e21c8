// Each visible text of the page, and each placeholder: its contrast with what is behind it, and the least that WCAG's
// AA (1.4.3) lets it have. `image`: something is painted behind it that no colour says.
() => {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = colour;
        paint.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
    const behind = (element) => {
        const layers = [];
        let [image, opacity] = [false, 1];
        for (let each = element; each; each = each.parentElement) {
            const style = getComputedStyle(each);
            layers.unshift(rgba(style.backgroundColor));
            image ||= style.backgroundImage !== "none";
            opacity *= Number(style.opacity);
        }
        return { ground: layers.reduce((under, top) => over(top, under), rgba("canvas")), image, opacity };
    };
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) =>
        0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);

    const found = [];
    const measure = (element, text, pseudo) => {
        const style = getComputedStyle(element, pseudo);
        const { ground, image, opacity } = behind(element);
        const [r, g, b, alpha] = rgba(style.color);
        const both = [luminance(over([r, g, b, alpha * opacity], ground)), luminance(ground)];
        const [size, weight] = [parseFloat(style.fontSize), Number(style.fontWeight)];
        found.push({
            text: text.trim().slice(0, 40),
            ratio: (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05),
            least: size >= 24 || (size >= 18.66 && weight >= 700) ? 3 : 4.5,
            image,
        });
    };

    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const shown = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
        if (!walker.currentNode.data.trim() || !shown || element.closest(":disabled, option")) continue;
        const box = element.getBoundingClientRect();
        if (box.width > 2 && box.height > 2) measure(element, walker.currentNode.data);
    }
    for (const field of document.querySelectorAll("input, textarea, select")) {
        if (!field.checkVisibility() || field.disabled) continue;
        if (field.placeholder) measure(field, field.placeholder, "::placeholder");
        if (field.tagName === "SELECT") measure(field, field.selectedOptions[0]?.text ?? "");
    }
    return found;
}
