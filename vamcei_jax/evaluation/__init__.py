"""Evaluation: metrics over volumes, pictures and tables."""
