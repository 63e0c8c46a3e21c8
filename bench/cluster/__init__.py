"""Both tiers as a cluster runs them, on one machine: several servers, a name for them, gateways, callers."""
