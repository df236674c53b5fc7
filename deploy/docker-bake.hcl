# Images for both architectures, pushed where TAG says:
#
#     TAG=registry.example/avl:0.1.0 docker buildx bake -f deploy/docker-bake.hcl --push
variable "TAG" {
  default = "avl:0.1.0"
}

target "default" {
  context    = "."
  dockerfile = "deploy/Dockerfile"
  platforms  = ["linux/amd64", "linux/arm64"]
  tags       = [TAG]
}
