"""What the chart is rendered with: each factor's levels alone, all pairs of levels of two factors, the examples."""

from __future__ import annotations

import itertools
import random
from typing import Any

from tests.helm.chart import Values, merged

GPU = {"limits": {"memory": "48Gi"}, "requests": {"cpu": 4, "memory": "32Gi"}}
KONTEXT = {
    "id": "kontext",
    "source": "black-forest-labs/FLUX.1-Kontext-dev",
    "revision": "af58063aa431f4d2bbc11ae46f57451d4416a170",
    "dtype": "bfloat16",
    "slots": 4,
    "defaults": {"num_inference_steps": 28, "guidance_scale": 2.5},
    "limits": {"min_pixels": 65536, "max_pixels": 1048576},
    "max": {"num_inference_steps": 50},
    "warm_up": [[1024, 1024], [512, 512]],
    "loras": [
        {
            "source": "acme/ink",
            "weight_name": "ink.safetensors",
            "revision": "5f1e3f1b7c0d1e8a9b2c3d4e5f60718293a4b5c6",
            "scale": 0.8,
        }
    ],
}
CACHE = {"size": "60Gi"}
BUCKET = {"store": {"url": "s3://pictures/edits", "credentialsSecret": "retouch-store"}}
# What else the gateways and servers may reach: Redis, and a collector of traces.
WAYS = [
    {
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}],
        "ports": [{"port": port, "protocol": "TCP"}],
    }
    for name, port in (("redis", 6379), ("tracing", 4317))
]
MONITORING = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
OUT = {"networkPolicy": {"gateway": {"https": True}}}
REDIS_OUT = {"networkPolicy": {"gateway": {"https": True, "egress": WAYS}}}
SIGNED = {"signingKey": {"existingSecret": "retouch-signing"}}

# Each level is values on top of the chart's own; "" is those alone.
FACTORS: dict[str, dict[str, Values]] = {
    "models": {
        "": {},
        "gpu": {
            "models": [
                {
                    "name": "kontext",
                    "gpus": 1,
                    "resources": GPU,
                    "cache": CACHE,
                    "catalog": [KONTEXT],
                }
            ]
        },
        "several": {
            "models": [
                {
                    "name": "kontext",
                    "gpus": 1,
                    "replicas": 2,
                    "resources": GPU,
                    "cache": CACHE,
                    "catalog": [KONTEXT, {"id": "pocket", "source": "pocket"}],
                    "nodeSelector": {"gpu": "h200"},
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                },
                {
                    "name": "pocket",
                    "catalog": [{"id": "small", "source": "pocket", "examples": ["make it blue"]}],
                    "resources": {"requests": {"cpu": 1, "memory": "2Gi"}},
                },
            ],
            "server": {"resources": {"limits": {"memory": "2Gi"}}},
        },
    },
    "cache": {
        "": {},
        "claim": {
            "server": {
                "cache": {"persistent": True, "accessMode": "ReadWriteMany", "storageClass": "ssd"}
            }
        },
        "shared": {
            "server": {
                "cache": {
                    "existingClaim": "weights",
                    "readOnly": True,
                    "accessMode": "ReadOnlyMany",
                },
                "download": {"enabled": False},
            }
        },
        "hub": {"server": {"download": {"endpoint": "https://hub.example", "tokenSecret": "hub"}}},
    },
    "servers": {
        "": {},
        "keda": {
            "server": {
                "autoscaling": {"kind": "keda", "prometheus": "http://prometheus.monitoring:9090"}
            }
        },
        "hpa": {"server": {"autoscaling": {"kind": "hpa"}}},
    },
    "gateways": {
        "": {},
        "bucket": {"gateway": {"replicas": 3, **BUCKET, **SIGNED}, **OUT},
        "scaled": {
            "gateway": {
                **BUCKET,
                **SIGNED,
                "autoscaling": {"enabled": True},
                "redis": {"url": "redis://redis.redis:6379"},
            },
            **REDIS_OUT,
        },
        "redis": {"gateway": {**BUCKET, "redis": {"existingSecret": "retouch-redis"}}, **REDIS_OUT},
    },
    "callers": {
        "": {},
        "keys": {"gateway": {"keys": {"existingSecret": "retouch-keys"}}},
        "anonymous": {"gateway": {"anonymous": True, "publicUrl": "https://edits.example"}},
    },
    "tls": {
        "": {},
        "tls": {"tls": {"serverSecret": "retouch-server-tls"}},
        "mtls": {
            "tls": {"serverSecret": "retouch-server-tls", "clientSecret": "retouch-gateway-tls"}
        },
    },
    "policy": {
        "": {},
        "off": {"networkPolicy": {"enabled": False}},
        "wide": {
            "networkPolicy": {
                "prometheus": MONITORING,
                "gateway": {"https": True},
                "server": {"https": True},
            }
        },
    },
    "watching": {
        "": {},
        "services": {
            "metrics": {"monitor": "ServiceMonitor", "labels": {"release": "prometheus"}},
            "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True},
            "networkPolicy": {"prometheus": MONITORING},
        },
        "pods": {
            "metrics": {"monitor": "PodMonitor"},
            "alerts": {"enabled": True},
            "networkPolicy": {"prometheus": MONITORING},
        },
        "traced": {
            "tracing": {"endpoint": "http://collector.tracing:4317", "ratio": 0.1},
            "networkPolicy": {"gateway": {"egress": WAYS}, "server": {"egress": WAYS}},
        },
    },
    "rollout": {
        "": {},
        "replace": {"server": {"rollout": "replace"}},
    },
    "extras": {
        "": {},
        "all": {
            tier: {
                "priorityClassName": "high",
                "podAnnotations": {"example.com/team": "pictures"},
                "podLabels": {"example.com/team": "pictures"},
                "extraEnv": [{"name": "TZ", "value": "UTC"}],
                "extraVolumes": [{"name": "more", "emptyDir": {"sizeLimit": "1Gi"}}],
                "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
                "serviceAccount": {"annotations": {"example.com/role": "edits"}},
                "affinity": {"nodeAffinity": {}},
                "podDisruptionBudget": {"enabled": False},
            }
            for tier in ("server", "gateway")
        }
        | {
            "image": {"registry": "registry.example/retouch", "pullSecrets": ["registry"]},
            "commonLabels": {"example.com/owner": "pictures"},
            "c2pa": {"existingSecret": "retouch-c2pa"},
        },
        "renamed": {
            "fullnameOverride": "edits",
            "clusterDomain": "cluster.example",
            "runAsUser": None,
            "fsGroup": None,
        },
    },
}
# Who is let in from outside, once a caller is known or all are welcome.
FRONTS: dict[str, Values] = {
    "": {},
    "ingress": {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["edits.example"],
            "tlsSecret": "retouch-ingress",
            "controllerNamespace": "ingress-nginx",
        },
        "gateway": {"settings": {"trustedProxies": "10.0.0.0/8"}},
    },
    "route": {
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "hostnames": ["edits.example"],
            "gatewayNamespace": "gateways",
        },
        "gateway": {"publicUrl": "https://edits.example/pictures"},
    },
}


def pairwise(seed: int = 0) -> list[dict[str, str]]:
    """Rows of levels by factor, few, in which each two levels of different factors meet."""
    factors = {**FACTORS, "fronts": FRONTS}
    wanted = {
        frozenset([(one, first), (two, second)])
        for one, two in itertools.combinations(factors, 2)
        for first in factors[one]
        for second in factors[two]
        if _meet({one: first, two: second})
    }
    chance, rows = random.Random(seed), []
    while wanted:
        start = dict(min(wanted, key=sorted))
        tried = []
        for _ in range(60):
            row = {name: start.get(name, chance.choice(list(factors[name]))) for name in factors}
            if row["fronts"] and not row["callers"]:
                row["callers" if "callers" not in start else "fronts"] = (
                    chance.choice(["keys", "anonymous"]) if "callers" not in start else ""
                )
            tried.append(row)
        best = max(tried, key=lambda row: len(wanted & _pairs(row)))
        rows.append(best)
        wanted -= _pairs(best)
    return rows


def _meet(levels: dict[str, str]) -> bool:
    """Nobody is let in from outside unknown: the chart refuses it."""
    return levels.get("callers", "keys") != "" or not levels.get("fronts")


def _pairs(row: dict[str, str]) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def values(row: dict[str, str]) -> dict[str, Any]:
    """The values of a row of levels."""
    return merged(*({**FACTORS, "fronts": FRONTS}[name][level] for name, level in row.items()))


def every() -> dict[str, dict[str, Any]]:
    """All cases, by name: the chart's own values, each level alone, and the pairs."""
    alone = {
        f"{name}-{level}": values({name: level})
        for name, levels in FACTORS.items()
        for level in levels
        if level
    }
    rows = {f"pairs-{number}": values(row) for number, row in enumerate(pairwise())}
    return {"defaults": {}, **alone, **rows}
