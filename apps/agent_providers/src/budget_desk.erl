%% @doc Takes the wants of the provider calls to the ledger of their tenant, and starts that if need be.
-module(budget_desk).
-behaviour(gen_server).

%% API
-export([start_link/0]).
-export([attach/1]).
-export([ledger/1]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

%% By tenant; tenants are those of the configuration.
-record(desk, {ledgers = #{} :: #{binary() => pid()}}).

%% @doc Starts the desk.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc The provider calls are up, with this handle: leases of earlier ones are closed.
-spec attach(reference()) -> ok.
attach(Providers) ->
    gen_server:cast(?MODULE, {attach, Providers}).

%% @doc The ledger of a tenant, if one was needed yet.
-spec ledger(binary()) -> {ok, pid()} | none.
ledger(Tenant) ->
    gen_server:call(?MODULE, {ledger, Tenant}).

-spec init([]) -> {ok, #desk{}}.
init([]) ->
    _ = case native_subsystem:handle(providers) of
            {ok, P} -> agent_native:budget_attach(P);
            {error, native_down} -> ok
        end,
    {ok, #desk{}}.

-spec handle_call({ledger, binary()}, gen_server:from(), #desk{}) -> {reply, {ok, pid()} | none, #desk{}}.
handle_call({ledger, Tenant}, _, D = #desk{ledgers = Ledgers}) ->
    case Ledgers of
        #{Tenant := Pid} -> {reply, {ok, Pid}, D};
        #{} -> {reply, none, D}
    end.

-spec handle_cast({attach, reference()}, #desk{}) -> {noreply, #desk{}}.
handle_cast({attach, P}, D = #desk{ledgers = Ledgers}) ->
    _ = agent_native:budget_attach(P),
    _ = [gen_server:cast(Pid, renewed) || Pid <- maps:values(Ledgers)],
    {noreply, D}.

-spec handle_info(term(), #desk{}) -> {noreply, #desk{}}.
handle_info({agent_native, budget, want, #{tenant := Tenant, id := Id, needs := Needs}}, D) ->
    case open(Tenant, D) of
        {ok, Pid, D1} ->
            Pid ! {want, Id, Needs},
            {noreply, D1};
        {error, _} ->
            %% Whoever waits hears after its time that no ledger answered.
            {noreply, D}
    end;
handle_info({'DOWN', _, process, Pid, _}, D = #desk{ledgers = Ledgers}) ->
    {noreply, D#desk{ledgers = maps:filter(fun(_, P) -> P =/= Pid end, Ledgers)}};
handle_info(_, D) ->
    {noreply, D}.

-spec open(binary(), #desk{}) -> {ok, pid(), #desk{}} | {error, term()}.
open(Tenant, D = #desk{ledgers = Ledgers}) ->
    case Ledgers of
        #{Tenant := Pid} ->
            {ok, Pid, D};
        #{} ->
            case budget_ledger_sup:start_ledger(Tenant) of
                {ok, Pid} ->
                    _ = monitor(process, Pid),
                    {ok, Pid, D#desk{ledgers = Ledgers#{Tenant => Pid}}};
                {error, Why} ->
                    {error, Why}
            end
    end.

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.
