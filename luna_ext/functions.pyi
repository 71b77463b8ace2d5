NAMES: tuple[str, ...]
OTHER_ERRORS: str
