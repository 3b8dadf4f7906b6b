"""What people can do with the studio: one class per noun, no torch, no gradio."""
