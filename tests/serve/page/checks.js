// Checks of what people perceive. An expression: an object of functions, each of which returns its faults.
({
    /** Controls that are shown, and have no name for a screen reader. */
    unnamed() {
        const controls = 'button, a[href], input, select, textarea, summary, [role=tab], [role=listbox], [tabindex="0"]';
        const named = (each) => {
            const label = each.id ? document.querySelector(`label[for="${each.id}"]`) : null;
            const about = document.getElementById(each.getAttribute('aria-labelledby'));
            return [each.ariaLabel, about?.textContent, label?.textContent, each.textContent].some((text) => text?.trim());
        };
        return [...document.querySelectorAll(controls)]
            .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !named(each))
            .map((each) => each.outerHTML);
    },

    /** Ids that two elements have. */
    alike() {
        const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
        return ids.filter((id, at) => ids.indexOf(id) !== at);
    },

    /** Attributes that name an element which does not exist. */
    dangling() {
        const names = ['aria-controls', 'aria-labelledby', 'aria-describedby', 'aria-activedescendant'];
        return names.flatMap((name) => [...document.querySelectorAll(`[${name}]`)]
            .filter((each) => each.checkVisibility() && !document.getElementById(each.getAttribute(name)))
            .map((each) => `${name} of ${each.outerHTML.slice(0, 100)}`));
    },

    /** Texts with a contrast under 4.5 to what is behind them. A canvas mixes the colours. */
    faint() {
        const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
        const mixed = (colours) => {
            canvas.clearRect(0, 0, 1, 1);
            for (const colour of colours) {
                canvas.fillStyle = colour;
                canvas.fillRect(0, 0, 1, 1);
            }
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
        };
        const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        const light = (colour) => colour.reduce((sum, value, at) => sum + linear(value) * [0.2126, 0.7152, 0.0722][at], 0);
        const faults = [];
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) {
            const element = walk.currentNode.parentElement;
            const text = walk.currentNode.data.trim();
            if (!text || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
            if (element.closest('.hidden-text, :disabled, .skip, script, noscript, svg, .later')) continue;
            const behind = [];
            for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
            const both = [mixed([...behind, getComputedStyle(element).color]), mixed(behind)].map(light);
            const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
            if (contrast < 4.5) faults.push([text.slice(0, 40), contrast.toFixed(2)]);
        }
        return faults;
    },
})
