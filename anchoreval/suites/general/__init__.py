"""General benchmarks, as lm-eval's task definitions ask them."""
