"""Chat templates that know tools, and functions that may be called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

# As Qwen2.5 has it, with avl-tiny's words for roles.
HERMES_TEMPLATE = """\
{%- if tools %}{{- '# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- 'USER: ' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<image>\\n' }}{%- else %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}{{- ' ' }}
{%- elif message.role == 'assistant' %}{{- 'ASSISTANT:' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}{{- part.text }}{%- endfor %}{%- endif %}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}{{- '</s>' }}
{%- elif message.role == 'tool' %}
{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- 'USER:' }}{%- endif %}
{{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}
"""
# As Ministral 3 has it.
MISTRAL_TEMPLATE = """\
{%- if tools %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}
{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{{- message.content }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('nine') }}{%- endif %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{- call.function.arguments | tojson }}
{%- endfor %}{{- '</s>' }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}
"""
# As GLM-4.5V and 4.6V have it, without their thoughts.
GLM_TEMPLATE = """\
[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools

<tools>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
</tools>

<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
...
</tool_call>{%- endif -%}
{%- for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{% if m.content is string %}{{ m.content }}{% else %}
{%- for item in m.content %}
{%- if item.type == 'image' %}<image>{% else %}{{ item.text }}{% endif %}
{%- endfor %}{% endif %}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- if m.content is string and m.content.strip() -%}
{{ '\\n' + m.content.strip() }}
{%- elif m.content is not string -%}
{%- for item in m.content %}{{ '\\n' + item.text.strip() }}{% endfor %}
{%- endif -%}
{% if m.tool_calls %}
{% for tc in m.tool_calls %}
{%- if tc.function %}
    {%- set tc = tc.function %}
{%- endif %}
{{ '\\n<tool_call>' + tc.name }}
{% set _args = tc.arguments %}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}
{% endif %}
{%- elif m.role == 'tool' -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
    {{- '<|observation|>' }}
{%- endif %}
{{- '\\n<tool_response>\\n' }}
{{- m.content }}
{{- '\\n</tool_response>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""
# As GLM-4.7 and GLM-OCR have it: calls without lines.
GLM_DENSE_TEMPLATE = (
    GLM_TEMPLATE.replace("{{ '\\n<tool_call>' + tc.name }}", "{{- '<tool_call>' + tc.name -}}")
    .replace("</arg_key>\n<arg_value>{{", "</arg_key><arg_value>{{")
    .replace("else v }}</arg_value>\n{% endfor %}\n<", "else v }}</arg_value>{% endfor %}<")
    .replace(".items() %}\n<", ".items() %}<")
)
COLOUR = {"type": "string", "enum": ["red", "green"]}
FIND: dict[str, Any] = {
    "name": "find",
    "description": "Finds things.",
    "parameters": {
        "type": "object",
        "properties": {"colour": COLOUR, "most": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["colour", "most"],
        "additionalProperties": False,
    },
}
STOP: dict[str, Any] = {"name": "stop"}
TOOLS = [{"type": "function", "function": one} for one in (FIND, STOP)]


def with_template(package: Path, template: str, name: str) -> Path:
    """A copy of a package, beside it, with another chat template."""
    other = package.parent / name
    if not other.exists():
        shutil.copytree(package, other)
        manifest = other / "avl.json"
        found = json.loads(manifest.read_text()) | {"chat_template": template}
        manifest.write_text(json.dumps(found))
    return other
