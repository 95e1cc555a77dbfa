"""What an artifact is proved by: promises checked, outputs compared, time and costs measured, all of it reported."""
