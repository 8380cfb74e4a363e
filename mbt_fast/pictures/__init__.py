"""Pictures of where a model's attention goes in a clip. Needs the extra ``bench``."""
