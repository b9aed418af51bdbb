"""mmengine's Runner made safe: configs, loading, exact resume, preemption, hooks."""
