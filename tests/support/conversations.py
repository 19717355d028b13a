"""Conversations with every kind of message, for tests of chat templates."""

USER = {"role": "user", "content": "How many eggs? — 16 − 3, naïve 日本"}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": 'a "quoted" & <b>bold</b> é',
        "parameters": {"type": "object", "properties": {"items": {"type": "array"}, "n": {"type": "number"}}},
    },
}
CALL = {"name": "f", "arguments": {"n": 1.5, "items": [True, None, "日本"], "z": {"a": 1}}}
CALLING = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}
WRAPPED = {**CALLING, "tool_calls": [{"type": "function", "function": CALL}, {"function": CALL}]}
REPLY = {"role": "tool", "content": '{"temperature": 7}'}
THOUGHT = {"role": "assistant", "content": "<think>\nOkay, so 16 - 3\n</think>\n\n13 eggs.</think>\nindeed"}
CONVERSATIONS = {
    "plain": ([USER], None),
    "system": ([{"role": "system", "content": "Be brief."}, USER], None),
    "later system": ([USER, {"role": "system", "content": "Be brief."}], None),
    "turns": ([USER, THOUGHT, USER, THOUGHT, USER], None),
    "last thought": ([USER, THOUGHT], None),
    "tools": ([USER], [TOOL, TOOL]),
    "no tools": ([USER], []),
    "tools and system": ([{"role": "system", "content": "Be brief."}, USER], [TOOL]),
    "call": ([USER, CALLING, REPLY, USER], [TOOL]),
    "wrapped calls": ([USER, WRAPPED, REPLY, REPLY, THOUGHT, USER], [TOOL]),
    "call without words": ([USER, {**CALLING, "content": ""}, REPLY, REPLY], [TOOL]),
    "call last": ([USER, WRAPPED], [TOOL]),
    "angles": ([{"role": "user", "content": "a < b > c </b> <im_end> <| |>"}, USER], [TOOL]),
    "private use": ([{"role": "user", "content": "\ue000 \ue001 \\ue002 \\ue0034 <b>\uf8ff"}, USER], [TOOL]),
}
