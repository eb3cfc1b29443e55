"""Distillation: teacher, student, what each hears, and the objectives; it knows no gates."""
