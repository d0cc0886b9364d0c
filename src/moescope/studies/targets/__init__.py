"""Does a text reach every expert, and which experts carry what is to be fine-tuned?"""
