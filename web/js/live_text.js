// Shows what a language model is writing on its node, as plain text, on every supported frontend.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const EVENT = "dreamomni.text";
const NODES = ["DreamOmniRewritePrompt"];
const WIDGET = "dreamomni_live_text";

function addTextBox(node) {
    const box = document.createElement("textarea");
    box.className = "comfy-multiline-input";
    box.readOnly = true;
    box.placeholder = "The model's reply appears here while it is written.";
    const options = { serialize: false, getMinHeight: () => 70, getValue: () => box.value, setValue: () => {} };
    const widget = node.addDOMWidget(WIDGET, WIDGET, box, options);
    // Decoration only: neither in the saved workflow nor in the prompt.
    widget.serialize = false;
    widget.dreamomniBox = box;
}

// An id is "7" in the root graph and "3:7" for node 7 of the subgraph in node 3.
function findNode(executionId) {
    let graph = app.rootGraph ?? app.graph;
    let node = null;
    for (const id of String(executionId).split(":")) {
        node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id);
        graph = node?.subgraph;
    }
    return node;
}

app.registerExtension({
    name: "dreamomni.liveText",
    setup() {
        api.addEventListener(EVENT, ({ detail }) => {
            const box = findNode(detail.node)?.widgets?.find((widget) => widget.name === WIDGET)?.dreamomniBox;
            if (!box) return;
            box.value = detail.text;
            box.scrollTop = box.scrollHeight;
        });
    },
    nodeCreated(node) {
        if (NODES.includes(node.comfyClass)) addTextBox(node);
    },
});
