"""The commands of `convnet show` that ask about units and single pictures: maps, deconv, occlusion, cam."""
