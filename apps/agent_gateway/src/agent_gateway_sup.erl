%% @doc The front door: tenants, the ingress, and the listener last.
-module(agent_gateway_sup).
-behaviour(supervisor).

-export([start_link/0]).
-export([init/1]).

%% @doc Starts the supervisor.
-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% rest_for_one: the listener holds the ingress' pid, and the ingress asks the tenants. 20 in 60 s.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = orphans:await([tenant_registry, ingress, grpc_listener]),
    Child = fun(Id) -> #{id => Id, start => {Id, start_link, []}, shutdown => 5000} end,
    {ok, {#{strategy => rest_for_one, intensity => 20, period => 60},
          [Child(tenant_registry), Child(ingress), Child(grpc_listener)] ++ [Child(http_listener) || http_listener:wanted()]}}.
