"""Files here that only the compiler's environment can import are not collected."""

collect_ignore = ["native_rounds.py", "plans/statistics.py"]
