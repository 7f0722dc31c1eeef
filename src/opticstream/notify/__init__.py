"""Those who are told: today a log in the project; chat targets come behind the same two methods."""
