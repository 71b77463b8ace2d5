NAMES: tuple[str, ...]
CLUSTER_FUNCTIONS: tuple[str, ...]
OTHER_ERRORS: str
