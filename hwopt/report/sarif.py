"""Static findings as SARIF 2.1.0, as code scanning reads it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from hwopt.core.canonical import JSON

MOST: Final = 5_000  # results that hosts show of a run


def sarif(
    findings: Sequence[tuple[str, Mapping[str, Any]]], rules: Mapping[str, str], version: str
) -> dict[str, JSON]:
    """A log.

    Args:
        findings: path of a model, relative to the repository, and ``rule``, ``level``, ``text``, ``node``.
        rules: what each rule says, by id.
    """
    used = list(rules)
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "hwopt",
                        "semanticVersion": version,
                        "rules": [
                            {
                                "id": rule,
                                "shortDescription": {"text": text},
                                "fullDescription": {"text": text},
                                "help": {"text": text},
                            }
                            for rule, text in rules.items()
                        ],
                    }
                },
                "results": [
                    {
                        "ruleId": finding["rule"],
                        "ruleIndex": used.index(finding["rule"]),
                        "level": finding["level"],
                        "message": {"text": _message(finding, rules)},
                        "locations": [
                            {
                                "physicalLocation": {
                                    "artifactLocation": {"uri": quote(path)},
                                    # A model has no lines; hosts want one.
                                    "region": {
                                        "startLine": 1,
                                        "startColumn": 1,
                                        "endLine": 1,
                                        "endColumn": 2,
                                    },
                                }
                            }
                        ],
                        "partialFingerprints": {"primaryLocationLineHash": _fingerprint(path, finding)},
                    }
                    for path, finding in findings[:MOST]
                ],
            }
        ],
    }


def _message(finding: Mapping[str, Any], rules: Mapping[str, str]) -> str:
    place = f" (operator {finding['node']})" if finding["node"] else ""
    return f"{rules[finding['rule']]}: {finding['text']}{place}"


def _fingerprint(path: str, finding: Mapping[str, Any]) -> str:
    text = "\0".join([path, finding["rule"], finding["text"], finding["node"]])
    return hashlib.sha256(text.encode()).hexdigest()[:32] + ":1"
