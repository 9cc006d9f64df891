"""Pure mathematics: functions of arrays, without environments, files or clocks."""
