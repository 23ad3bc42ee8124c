"""Schedules of any graph within a budget: published rematerialization problems."""
